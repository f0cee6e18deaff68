"""What is measured of a task with the base model: its inputs, and how much each entry of an adapter matters."""
