"""What predict does: texts of the user's through the compiled model, in places that are gone afterwards."""
