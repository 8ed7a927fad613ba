"""The report: from the ledger to frames, tables, figures, chapters and the book."""
