-- What was asked and answered, with what learning needs. The columns of the first drawing keep their names and types.
UPDATE ai_interactions SET id = coalesce(id, gen_random_uuid()), created_at = coalesce(created_at, now())
    WHERE id IS NULL OR created_at IS NULL;
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'ai_interactions'::regclass AND contype = 'p') THEN
        ALTER TABLE ai_interactions ADD PRIMARY KEY (id);
    END IF;
END $$;
ALTER TABLE ai_interactions
    ALTER COLUMN id SET DEFAULT gen_random_uuid(),
    ALTER COLUMN created_at SET DEFAULT now(),
    ALTER COLUMN created_at SET NOT NULL,
    -- Long texts go out of the row, and what is searched stays in it: a search reads rows by the thousand.
    ALTER COLUMN query SET STORAGE EXTERNAL,
    ALTER COLUMN response SET STORAGE EXTERNAL,
    ADD COLUMN subject varchar(255) NOT NULL DEFAULT '',
    ADD COLUMN trace_id varchar(64) NOT NULL DEFAULT '',
    ADD COLUMN servers text[] NOT NULL DEFAULT '{}',
    ADD COLUMN range_start timestamp,
    ADD COLUMN range_end timestamp,
    ADD COLUMN metrics text[] NOT NULL DEFAULT '{}',
    ADD COLUMN model varchar(100) NOT NULL DEFAULT '',
    ADD COLUMN intent varchar(100) NOT NULL DEFAULT '',
    ADD COLUMN latency_seconds double precision,
    ADD COLUMN prompt_tokens bigint,
    ADD COLUMN response_tokens bigint,
    ADD COLUMN rating_comment text NOT NULL DEFAULT '',
    ADD COLUMN rated_at timestamp,
    ADD COLUMN labels jsonb NOT NULL DEFAULT '{}',
    -- A tsvector holds 1 MiB, and a word with hyphens or a URL is in it several times: of longer texts the beginning.
    ADD COLUMN words tsvector GENERATED ALWAYS AS (
        setweight(to_tsvector('english', left(coalesce(query, ''), 16384)), 'A')
        || setweight(to_tsvector('english', left(coalesce(response, ''), 49152)), 'B')
    ) STORED;
ALTER TABLE ai_interactions ALTER COLUMN words SET STORAGE MAIN;

-- Without a list of what is pending, which every search would read.
CREATE INDEX ai_interactions_words ON ai_interactions USING gin (words) WITH (fastupdate = off);
CREATE INDEX ai_interactions_servers ON ai_interactions USING gin (servers) WITH (fastupdate = off);
CREATE INDEX ai_interactions_metrics ON ai_interactions USING gin (metrics) WITH (fastupdate = off);
CREATE INDEX ai_interactions_labels ON ai_interactions USING gin (labels jsonb_path_ops) WITH (fastupdate = off);
CREATE INDEX ai_interactions_created ON ai_interactions (created_at, id);
DROP INDEX IF EXISTS ai_interactions_session;
CREATE INDEX ai_interactions_session ON ai_interactions (session_id, created_at, id);
CREATE INDEX ai_interactions_subject ON ai_interactions (subject, created_at, id);
CREATE INDEX ai_interactions_model ON ai_interactions (model, created_at, id);
CREATE INDEX ai_interactions_intent ON ai_interactions (intent, created_at, id);
CREATE INDEX ai_interactions_trace ON ai_interactions (trace_id) WHERE trace_id <> '';
CREATE INDEX ai_interactions_confidence ON ai_interactions (confidence);
CREATE INDEX ai_interactions_rating ON ai_interactions (user_rating, created_at, id) WHERE user_rating IS NOT NULL;

-- Recordings that may be repeated. They go with what they recorded; kept for a day.
CREATE TABLE interaction_requests (
    request_id varchar(64) PRIMARY KEY,
    body_hash bytea NOT NULL,
    interaction_id uuid NOT NULL REFERENCES ai_interactions ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    created_at timestamp NOT NULL DEFAULT now()
);
CREATE INDEX interaction_requests_interaction ON interaction_requests (interaction_id);
CREATE INDEX interaction_requests_created ON interaction_requests (created_at);

-- Erasures after which the words of what went are still to be taken out of the index.
CREATE TABLE interaction_erasures (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at timestamp NOT NULL DEFAULT now()
);
