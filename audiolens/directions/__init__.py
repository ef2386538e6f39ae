"""Directions: estimate them, assess the evidence for them, store them with their provenance, and steer with them."""

from audiolens.directions.difference_in_means import difference_in_means as difference_in_means
from audiolens.directions.directions import Directions as Directions
from audiolens.directions.directions import orthogonalised as orthogonalised
