"""What the recipes are about: for each kind of head its data, its models, and how these are measured."""
