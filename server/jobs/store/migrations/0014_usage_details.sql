-- Pictures and seconds of devices, beside requests and megapixels; what was counted before this has none.
ALTER TABLE usage ADD COLUMN images INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN seconds REAL NOT NULL DEFAULT 0;
