"""A file for each dialect: routes, request models, answers."""
