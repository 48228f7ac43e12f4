"""Views that follow what happens; each works without a live front end too."""
