"""Jobs on their way in: what they say is checked, what must not change is resolved, what a child runs is known."""
