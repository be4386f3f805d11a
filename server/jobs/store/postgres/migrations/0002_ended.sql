-- A node that connects counts what has ended, and should not read every row for it.
CREATE INDEX job_ended ON job (status) WHERE finished_at IS NOT NULL;
