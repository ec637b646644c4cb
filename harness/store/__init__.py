"""What is kept under the output directory: records, failures, locks, and how they are written."""
