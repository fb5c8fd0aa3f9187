CREATE TABLE servers (
    id varchar(255) PRIMARY KEY,
    hostname varchar(255) NOT NULL,
    environment varchar(50),
    role varchar(50),
    location varchar(100),
    created_at timestamp DEFAULT now(),
    updated_at timestamp DEFAULT now(),
    labels jsonb NOT NULL DEFAULT '{}',
    thresholds jsonb NOT NULL DEFAULT '{}',
    -- The fields that a person set: registration leaves them alone.
    set_by_people text[] NOT NULL DEFAULT '{}',
    version bigint NOT NULL DEFAULT 1,
    deleted_at timestamp
);
CREATE INDEX servers_updated ON servers (updated_at, id);
CREATE INDEX servers_deleted ON servers (id) WHERE deleted_at IS NOT NULL;

CREATE TABLE ai_interactions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    session_id varchar(255),
    query text,
    response text,
    confidence float,
    user_rating integer,
    created_at timestamp DEFAULT now()
);
CREATE INDEX ai_interactions_session ON ai_interactions (session_id, created_at);

CREATE TABLE policies (
    kind varchar(63) NOT NULL,
    id varchar(255) NOT NULL,
    document jsonb NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    updated_at timestamp NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, id)
);

-- Creations that may be repeated: the hash tells a repetition from another request under the same id.
CREATE TABLE requests (
    request_id varchar(64) PRIMARY KEY,
    body_hash bytea NOT NULL,
    server_id varchar(255) NOT NULL,
    created_at timestamp NOT NULL DEFAULT now()
);
