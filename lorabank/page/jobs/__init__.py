"""Tasks that are added from the page: their rows, their settings, and the trainings as processes of their own."""
