-- Whether a worker has begun the present claim; noted only where that decides if the job may run again.

ALTER TABLE job ADD COLUMN has_begun INTEGER NOT NULL DEFAULT 0 CHECK (has_begun IN (0, 1));
