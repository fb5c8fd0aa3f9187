-- Who may come in. What is secret is kept as a hash alone: passwords by Argon2id, the rest, which nobody can guess, by HMAC.
CREATE TABLE users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(64) NOT NULL UNIQUE,
    grants jsonb NOT NULL DEFAULT '[]',
    disabled boolean NOT NULL DEFAULT false,
    password_hash text,
    invitation_hash bytea,
    invitation_ends timestamp,
    -- Wrong passwords in a row, and until when the password is not asked for because of them.
    failures integer NOT NULL DEFAULT 0,
    locked_until timestamp,
    created_at timestamp NOT NULL DEFAULT now(),
    updated_at timestamp NOT NULL DEFAULT now(),
    signed_in_at timestamp,
    version bigint NOT NULL DEFAULT 1
);

CREATE TABLE api_keys (
    id varchar(16) PRIMARY KEY,
    description varchar(255) NOT NULL,
    grants jsonb NOT NULL,
    secret_hash bytea NOT NULL,
    -- The secret before the last exchange works on for a while.
    old_secret_hash bytea,
    old_secret_ends timestamp,
    ends timestamp NOT NULL,
    creator varchar(64) NOT NULL,
    created_at timestamp NOT NULL DEFAULT now(),
    updated_at timestamp NOT NULL DEFAULT now(),
    used_at timestamp,
    rotated_at timestamp NOT NULL DEFAULT now(),
    version bigint NOT NULL DEFAULT 1
);

CREATE TABLE sessions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    refresh_hash bytea NOT NULL,
    -- The token before: who lost the answer may come with it again at once.
    old_refresh_hash bytea,
    ends timestamp NOT NULL,
    created_at timestamp NOT NULL DEFAULT now(),
    updated_at timestamp NOT NULL DEFAULT now(),
    version bigint NOT NULL DEFAULT 1
);
CREATE INDEX sessions_user ON sessions (user_id, id);
CREATE INDEX sessions_ends ON sessions (ends);
