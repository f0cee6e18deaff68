"""The demo: four small real tasks, one after another."""
