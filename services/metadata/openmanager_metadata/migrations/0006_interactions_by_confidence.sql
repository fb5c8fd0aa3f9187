-- With the key of lists in it, what is asked by confidence is put in order without reading a row.
DROP INDEX ai_interactions_confidence;
CREATE INDEX ai_interactions_confidence ON ai_interactions (confidence, created_at, id);
