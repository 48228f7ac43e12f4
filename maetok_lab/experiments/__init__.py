"""The paper's studies, made of the rooms below: every step a run, so whatever is finished is not done again."""
