"""A package for each dialect: routes, request models, answers. What two of them share is one folder up."""
