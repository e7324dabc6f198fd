"""The verdicts, one file each; `kvmon.diagnosis.catalogue` lists them."""
