"""The page of each verdict, as Markdown; `kvmon.diagnosis.reading` reads them."""
