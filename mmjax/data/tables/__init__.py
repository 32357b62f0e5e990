"""Tables: lines and columns on disk, checked once and then mapped into memory, as records."""
