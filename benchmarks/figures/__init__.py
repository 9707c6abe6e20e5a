"""The paper's figures made again: what is run (`plan`), raw rows (`rows`), statistics (`statistics`), pictures (`drawing`)."""
