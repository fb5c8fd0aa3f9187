-- Grafana's role: reads what its dashboards show of the inventory and of interactions, and writes nothing. May be run again.
SET log_statement = 'none';
SET log_min_error_statement = 'panic';  -- the password is not for the log
SET log_min_duration_statement = -1;
\set password `cat /run/secrets/grafana_reader_password`

SELECT 'CREATE ROLE grafana_reader' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana_reader') \gexec

BEGIN;
ALTER ROLE grafana_reader WITH
    LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 10 PASSWORD :'password';
ALTER ROLE grafana_reader SET default_transaction_read_only = on;
ALTER ROLE grafana_reader SET statement_timeout = '10s';
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM grafana_reader;
GRANT SELECT (id, hostname, environment, role, location, created_at, updated_at, deleted_at) ON servers TO grafana_reader;
-- Not what was said.
GRANT SELECT (id, created_at, model, intent, latency_seconds, prompt_tokens, response_tokens, user_rating, confidence)
    ON ai_interactions TO grafana_reader;
COMMIT;
