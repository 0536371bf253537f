"""Where copies are wanted: rules, policies, drains and the cleaning of caches."""
