"""How accurate a network is in INT8, beside float: accuracy, agreement, errors of the outputs."""
