"""Recipes: a base plus a difference becomes one checked configuration that knows where each value came from."""

from anban.recipe.recipe import (
    Recipe,
    differences,
    flatten,
    from_config,
    list_recipes,
    load_recipe,
    task_package,
)

__all__ = ["Recipe", "differences", "flatten", "from_config", "list_recipes", "load_recipe", "task_package"]
