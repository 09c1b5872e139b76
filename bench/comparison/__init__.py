"""The parts of bench/compare, in the order in which they work:

options   the command line
install   peers from the distribution, rnet and the load generator from this tree
space     private namespaces: the fake host, the remote machine, links between them
tools     how each of the compared tools gives a guest its network
cells     what is measured, and how one sample is taken
machine   what the measurement ran on, and whether others were using it
report    medians, spreads, ratios; table, CSV and JSON
chart     the same as SVG
main      puts them together
"""
