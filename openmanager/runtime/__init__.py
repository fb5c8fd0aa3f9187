"""What every server has, knowing no service."""
