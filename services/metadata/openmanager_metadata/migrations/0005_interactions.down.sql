DROP TABLE interaction_erasures, interaction_requests;
-- The indexes of columns that go, go with them.
DROP INDEX ai_interactions_session, ai_interactions_created, ai_interactions_confidence, ai_interactions_rating;
ALTER TABLE ai_interactions
    DROP COLUMN words,
    DROP COLUMN labels,
    DROP COLUMN rated_at,
    DROP COLUMN rating_comment,
    DROP COLUMN response_tokens,
    DROP COLUMN prompt_tokens,
    DROP COLUMN latency_seconds,
    DROP COLUMN intent,
    DROP COLUMN model,
    DROP COLUMN metrics,
    DROP COLUMN range_end,
    DROP COLUMN range_start,
    DROP COLUMN servers,
    DROP COLUMN trace_id,
    DROP COLUMN subject,
    ALTER COLUMN created_at DROP NOT NULL,
    ALTER COLUMN query SET STORAGE EXTENDED,
    ALTER COLUMN response SET STORAGE EXTENDED;
CREATE INDEX ai_interactions_session ON ai_interactions (session_id, created_at);
