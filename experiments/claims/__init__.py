"""The report's claims, re-tested at the size of a run: one file, one claim (`claim.find`)."""
