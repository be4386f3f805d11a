-- The words of prompts, so that requests are found by them. What its caller wants not kept is not in here.
CREATE VIRTUAL TABLE job_text USING fts5 (prompt, content = '', contentless_delete = 1);

INSERT INTO job_text (rowid, prompt)
SELECT seq, json_extract(input, '$.prompt') FROM job
WHERE store_io AND json_valid(input) AND json_type(input, '$.prompt') = 'text';

CREATE TRIGGER job_text_goes AFTER DELETE ON job WHEN OLD.store_io
BEGIN
    DELETE FROM job_text WHERE rowid = OLD.seq;
END;
