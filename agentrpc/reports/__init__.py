"""Reports: what a log amounts to, as a document. Knows no store and no network; rendering has a process of its own."""
