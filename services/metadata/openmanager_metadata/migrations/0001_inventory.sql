-- A database that has these two tables already, as they were first drawn up, keeps them and what is in them.
CREATE TABLE IF NOT EXISTS servers (
    id varchar(255) PRIMARY KEY,
    hostname varchar(255) NOT NULL,
    environment varchar(50),
    role varchar(50),
    location varchar(100),
    created_at timestamp DEFAULT now(),
    updated_at timestamp DEFAULT now()
);
ALTER TABLE servers
    ADD COLUMN IF NOT EXISTS labels jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS thresholds jsonb NOT NULL DEFAULT '{}',
    -- The fields that a person set: registration leaves them alone.
    ADD COLUMN IF NOT EXISTS set_by_people text[] NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS version bigint NOT NULL DEFAULT 1,
    ADD COLUMN IF NOT EXISTS deleted_at timestamp;
CREATE INDEX IF NOT EXISTS servers_updated ON servers (updated_at, id);
CREATE INDEX IF NOT EXISTS servers_deleted ON servers (id) WHERE deleted_at IS NOT NULL;

CREATE TABLE IF NOT EXISTS ai_interactions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    session_id varchar(255),
    query text,
    response text,
    confidence float,
    user_rating integer,
    created_at timestamp DEFAULT now()
);
CREATE INDEX IF NOT EXISTS ai_interactions_session ON ai_interactions (session_id, created_at);

CREATE TABLE policies (
    kind varchar(63) NOT NULL,
    id varchar(255) NOT NULL,
    document jsonb NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    updated_at timestamp NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, id)
);

-- Creations that may be repeated: the hash tells a repetition from another request under the same id, and the reply is
-- what the first was answered. Kept for a day.
CREATE TABLE requests (
    request_id varchar(64) PRIMARY KEY,
    body_hash bytea NOT NULL,
    reply jsonb,
    created_at timestamp NOT NULL DEFAULT now()
);
CREATE INDEX requests_created ON requests (created_at);
