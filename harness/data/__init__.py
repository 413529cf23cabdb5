"""Reviews: IMDB, a user's own texts, their vocabulary and n-grams, and batches for networks."""
