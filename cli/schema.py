"""`nst schema`."""


def schema() -> None:
    """Print the JSON schema of recipes, by which editors complete and check them: `nst schema > recipe.schema.json` beside a recipe."""
    from nst_train.recipes.schema import schema_text

    print(schema_text(), end="")
