DROP INDEX ai_interactions_confidence;
CREATE INDEX ai_interactions_confidence ON ai_interactions (confidence);
