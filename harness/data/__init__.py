"""The data: IMDB or a user's texts, their vocabulary and n-grams, and batches for networks."""
