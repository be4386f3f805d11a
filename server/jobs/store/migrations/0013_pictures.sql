-- What a drawn picture follows from, so that the same request is answered from it; NULL for what is never asked for.

ALTER TABLE job ADD COLUMN picture_key BLOB;

CREATE INDEX job_by_picture ON job (picture_key, tenant) WHERE picture_key IS NOT NULL;
