"""The paper's studies, each number a run: ladder, comparison, cards, settings, planner."""
