-- The audit log. Who records needs INSERT and SELECT here, on subject keys and holds DELETE too, and nothing else; what
-- is too old is deleted by audit_prune alone, which runs with the rights of who owns it.
CREATE TABLE audit_log (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    id uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO audit_log DEFAULT VALUES;

-- `entry` is what counts; the columns after `leaf_hash` are what one looks for it by.
CREATE TABLE audit_entries (
    number bigint PRIMARY KEY CHECK (number > 0),
    entry bytea NOT NULL,
    leaf_hash bytea NOT NULL CHECK (octet_length(leaf_hash) = 32),
    time_unix_nanos bigint NOT NULL,
    kind smallint NOT NULL CHECK (kind BETWEEN 1 AND 3),
    actor text NOT NULL,
    via text NOT NULL,
    action text NOT NULL,
    object text NOT NULL,
    code smallint NOT NULL,
    reason text NOT NULL,
    request_id text NOT NULL,
    trace_id text NOT NULL,
    intent bigint NOT NULL
);
CREATE INDEX audit_entries_time ON audit_entries (time_unix_nanos, number);
CREATE INDEX audit_entries_actor ON audit_entries (actor, number);
CREATE INDEX audit_entries_action ON audit_entries (action, number);
CREATE INDEX audit_entries_object ON audit_entries (object, number);
CREATE INDEX audit_entries_request ON audit_entries (request_id, number) WHERE request_id <> '';
-- An intent has one outcome.
CREATE UNIQUE INDEX audit_entries_outcome ON audit_entries (intent) WHERE kind = 2;

-- The roots of every 1,024 leaves, from 0 on: what proofs and a start need of a long log, and what is left of a part that
-- was deleted.
CREATE TABLE audit_tiles (
    index bigint PRIMARY KEY CHECK (index >= 0),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32)
);

CREATE TABLE audit_checkpoints (
    size bigint PRIMARY KEY CHECK (size > 0),
    root bytea NOT NULL CHECK (octet_length(root) = 32),
    time_unix_nanos bigint NOT NULL,
    previous bytea NOT NULL CHECK (octet_length(previous) = 32),
    key_id bytea NOT NULL,
    signature bytea NOT NULL
);

-- Deleting a key makes what was sealed under it unreadable.
CREATE TABLE audit_subject_keys (
    id bytea PRIMARY KEY CHECK (octet_length(id) = 16),
    subject text NOT NULL UNIQUE,
    key bytea NOT NULL CHECK (octet_length(key) = 32),
    created_at timestamp NOT NULL DEFAULT now()
);

-- The holds of the policy `audit/default`, written here before anything is deleted: `condition` is its filter as a tree,
-- NULL for every entry of the range.
CREATE TABLE audit_holds (
    id text PRIMARY KEY,
    condition jsonb,
    start_unix_nanos bigint NOT NULL,
    end_unix_nanos bigint NOT NULL,
    reason text NOT NULL
);

CREATE FUNCTION audit_matches(condition jsonb, entry audit_entries) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
DECLARE
    part jsonb;
    have text;
    want text := condition ->> 'value';
    sign text := condition ->> 'operator';
BEGIN
    IF condition IS NULL THEN
        RETURN true;
    ELSIF condition ? 'and' THEN
        FOR part IN SELECT jsonb_array_elements(condition -> 'and') LOOP
            IF NOT audit_matches(part, entry) THEN RETURN false; END IF;
        END LOOP;
        RETURN true;
    ELSIF condition ? 'or' THEN
        FOR part IN SELECT jsonb_array_elements(condition -> 'or') LOOP
            IF audit_matches(part, entry) THEN RETURN true; END IF;
        END LOOP;
        RETURN false;
    ELSIF condition ? 'not' THEN
        RETURN NOT audit_matches(condition -> 'not', entry);
    END IF;
    have := to_jsonb(entry) ->> (condition ->> 'column');
    IF have IS NULL THEN
        RETURN true; -- a condition that is not understood holds everything
    END IF;
    RETURN CASE sign
        WHEN '=' THEN have = want
        WHEN '!=' THEN have <> want
        WHEN ':' THEN position(want IN have) > 0
        WHEN '<' THEN have::numeric < want::numeric
        WHEN '<=' THEN have::numeric <= want::numeric
        WHEN '>' THEN have::numeric > want::numeric
        WHEN '>=' THEN have::numeric >= want::numeric
        ELSE true
    END;
END $$;

-- Deletes the entries 1 to `through`, and returns how many these were. It refuses unless they are whole tiles, the log says
-- of itself that they are deleted, the policy's retention has passed for every one of them, and no hold matches one.
CREATE FUNCTION audit_prune(through bigint) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT AS $$
DECLARE
    days numeric;
    newest bigint;
    held text;
    gone bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(7265002);
    IF through <= 0 OR through % 1024 <> 0
        OR (SELECT count(*) FROM audit_tiles t WHERE t.index < through / 1024) <> through / 1024 THEN
        RAISE EXCEPTION 'only whole tiles of 1024 entries are deleted';
    END IF;
    IF NOT EXISTS (SELECT FROM audit_entries e WHERE e.number > through AND e.action = 'audit.pruned'
        AND e.object = 'entries/1-' || through) THEN
        RAISE EXCEPTION 'the log does not say that these are deleted';
    END IF;
    SELECT (document ->> 'retention_days')::numeric INTO days FROM policies WHERE kind = 'audit' AND id = 'default';
    SELECT max(e.time_unix_nanos) INTO newest FROM audit_entries e WHERE e.number <= through;
    IF days IS NULL OR newest >= (extract(epoch FROM now()) - days * 86400) * 1000000000 THEN
        RAISE EXCEPTION 'the retention of these has not passed';
    END IF;
    SELECT h.id INTO held FROM audit_holds h WHERE EXISTS (
        SELECT FROM audit_entries e WHERE e.number <= through AND e.time_unix_nanos >= h.start_unix_nanos
            AND e.time_unix_nanos < h.end_unix_nanos AND audit_matches(h.condition, e)) LIMIT 1;
    IF held IS NOT NULL THEN
        RAISE EXCEPTION 'the hold % keeps some of these', held;
    END IF;
    DELETE FROM audit_entries e WHERE e.number <= through;
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END $$;
REVOKE ALL ON FUNCTION audit_prune(bigint) FROM PUBLIC;
