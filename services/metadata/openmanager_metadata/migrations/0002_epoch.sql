-- Which database this is, and how often it was read from beginning to end: one that comes back empty, or as it was some
-- time ago, is known by them.
CREATE TABLE epoch (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    beat bigint NOT NULL DEFAULT 0
);
INSERT INTO epoch DEFAULT VALUES;
