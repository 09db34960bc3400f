"""A job's folder: who may write there, what it holds, and how a whole take comes to lie in it."""
