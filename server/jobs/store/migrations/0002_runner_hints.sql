-- Jobs of one bucket go to the same worker while it lives; NULL goes to any.

ALTER TABLE job ADD COLUMN hint_bucket INTEGER;
