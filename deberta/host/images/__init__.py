"""Stage images and the CI image: pins, definitions, builds."""
