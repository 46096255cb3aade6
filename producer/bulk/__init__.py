"""Files in, files out: assistant files, rows of CSV, JSONL and Parquet, results.

`assistant_file.load` reads a YAML assistant, `rows` turns each row of a file into a job or
says what is wrong with it, `results` writes what became of the jobs.
"""
