DROP FUNCTION audit_prune(bigint);
DROP FUNCTION audit_matches(jsonb, audit_entries);
DROP TABLE audit_holds, audit_subject_keys, audit_checkpoints, audit_tiles, audit_entries, audit_log;
