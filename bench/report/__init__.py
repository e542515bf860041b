"""Tables from what is stored; nothing is trained here."""
