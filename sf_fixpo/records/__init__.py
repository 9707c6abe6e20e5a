"""What a run leaves behind, and who reads it. Imported by all rooms; imports none of them."""
