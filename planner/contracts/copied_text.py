"""How often a token is right that followed earlier text, where nothing else is known; planner and runtime start there.

Natural text; by the length of the longest match before it, 1 to 16 tokens or more. Source: DESIGN.md, section 7, and
lengths in between measured likewise.
"""

RIGHT_BY_LENGTH = (0.25, 0.49, 0.62, 0.67, 0.71, 0.73, 0.78, 0.80, 0.81, 0.83, 0.86, 0.86, 0.86, 0.88, 0.89, 0.95)
ONE_VOTE_ODDS = 0.5  # of what followed a match only once, by those over all votes
PRIOR_TOKENS = 8.0  # observed ones that the table counts for

MOST_TEXT_TOKENS = 2**18  # of the own text, that are searched: the latest ones
TEXT_BYTES = 600  # that the search takes for each of them at most
CORPUS_TOKEN_BYTES = 400  # of other texts, at most: natural ones took 185, random ones of two tokens 390
