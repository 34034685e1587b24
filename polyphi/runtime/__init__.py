"""Services of the machine for all other packages: processes, files, memory, precision, metrics. Imports no other
package of polyphi."""
