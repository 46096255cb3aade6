"""The completion flow of one job: claim, prepare, converse, decide, settle. Read run.py first."""
