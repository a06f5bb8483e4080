"""The bundle: one archive of a report and its evidence, and its verification."""
