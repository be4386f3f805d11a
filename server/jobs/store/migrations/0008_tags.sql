-- With which key a job was asked for, and what its caller labelled it with (a JSON object of text).

ALTER TABLE job ADD COLUMN key_id TEXT NOT NULL DEFAULT '';
ALTER TABLE job ADD COLUMN tags TEXT NOT NULL DEFAULT '{}';

-- The same labels once more, so that jobs can be found by them.
CREATE TABLE job_tag (
    name    TEXT    NOT NULL,
    value   TEXT    NOT NULL,
    job_seq INTEGER NOT NULL REFERENCES job (seq) ON DELETE CASCADE,
    PRIMARY KEY (name, value, job_seq)
) STRICT, WITHOUT ROWID;

CREATE INDEX job_tag_of_job ON job_tag (job_seq);
